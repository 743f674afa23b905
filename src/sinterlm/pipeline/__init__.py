"""The stages of a fusion, and what carries them out, plans them and reports on them."""
