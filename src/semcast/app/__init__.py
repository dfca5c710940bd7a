"""The command line; every heavy import waits until a command needs it."""
