"""What programs that are started here inherit."""

import signal

# Under nohup SIGHUP is ignored, and so it would be by every program that a test starts and then hangs up on.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
