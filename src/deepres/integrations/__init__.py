"""Other libraries' interfaces to the nets and weights."""
