"""lightning-hnd: Hierarchical Network Dissection of face models while they train."""
