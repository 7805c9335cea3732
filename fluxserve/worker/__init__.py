"""The process that owns the device: takes jobs off the pipe, steps them, sends what comes of them."""
