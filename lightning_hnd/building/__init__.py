"""Makes a Face Dictionary of the pictures, labels and landmarks that a user has."""
