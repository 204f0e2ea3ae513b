"""The demo that `./script/demo` runs: a HAProxy runs out of ports before your eyes, is told of, and is cured."""
