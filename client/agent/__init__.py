"""What runs at a hospital: it joins a federation, keeps the connection, works on messages."""
