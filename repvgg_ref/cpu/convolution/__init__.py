"""Fast convolution in NHWC: the algorithms, who does what, and what each costs."""
