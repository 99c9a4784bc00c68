"""Update weights: an optimizer with its learning-rate schedule, a gradient that blocks share, offloading."""
