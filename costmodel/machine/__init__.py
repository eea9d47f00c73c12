"""What a machine makes of a step: how long it takes and what the process holds, calibrated there or by a device file."""
