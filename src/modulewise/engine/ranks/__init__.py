"""Parts on several processes: who owns what, what travels between ranks, and what happens when one stops."""
