"""Who may do what: peer classes, the membership snapshot they come from, rate limits."""
