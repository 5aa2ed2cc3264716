"""What the tests share: an independent oracle, problems, the kernels under test, and the comparers."""
