"""Store parts with what is known of them, load them, hold them to bounds, build on them."""
