"""LINK: detected boxes in pairs that attend to a VLM's cached map, distilled from pair teachers."""
