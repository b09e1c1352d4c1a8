"""LINK: detected boxes in pairs that ask a VLM's cached map, taught by pair teachers."""
