"""A mark of PTX that the OpenCL compiler must not see, shared by who writes it and who takes it off."""

ONLY_HIDDEN = "trap; //@"  # in front of an instruction, a line of its own: without it the kernel must not run
