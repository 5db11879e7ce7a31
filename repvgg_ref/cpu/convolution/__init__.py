"""Fast convolution in NHWC: the algorithms, who does what, what each costs, and gradients."""
