"""Who computes: what a task is, what one worker does with it, and the executors that hand tasks to workers."""
