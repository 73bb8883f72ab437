"""What knows Lightning: the callbacks, and what a Trainer may ask of them."""
