"""What a machine makes of a step: its time and the process's memory, calibrated there or by a device file."""
