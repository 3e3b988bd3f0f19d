"""Who comes in: users and their passwords, web sessions, API keys, the second factor, a hospital's sign-on."""
