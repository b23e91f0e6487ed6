"""What runs at a hospital: policy gate, data, training, privacy, ledger."""
