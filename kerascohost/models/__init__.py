"""Models made from models: fused into one, and cloned."""
