"""The teacher's answers cached once, light human-object interaction students trained from them."""
