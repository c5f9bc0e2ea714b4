"""How far apart two images look to a network: distances, and losses to train with."""
