"""What measured a remembered render."""

CALIBRATED, SWEPT, LEARNED, COMPARED = SOURCES = ("calibrate", "sweep", "learn", "blind test")
