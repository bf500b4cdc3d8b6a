"""`python -m liftmap` is `liftmap`; what `accelerate launch -m liftmap` and `torchrun -m` run."""

from liftmap.cli import main

main()
