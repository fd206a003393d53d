"""Several API processes behind one address: the supervisor, its members, and what they say to each other."""
