"""A function as a flat program: jaxprs read, walked and run, and forward and backward made one joint program."""
