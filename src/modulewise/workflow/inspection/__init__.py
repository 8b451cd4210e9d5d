"""Look at every part while it trains and afterwards; name the weak one."""
