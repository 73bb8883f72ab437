"""What is asked of a model beyond a dissection: without some units, in other bases, how surely."""
