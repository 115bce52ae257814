"""The chain as a node sees it: plain values, the Chain protocol, and its adapter to Substrate."""
