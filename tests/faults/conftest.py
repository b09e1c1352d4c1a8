"""What programs that are started here inherit."""

import signal

# Under nohup SIGHUP is ignored, and SIGINT in a shell's background; so they would be by every program that a test signals.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
