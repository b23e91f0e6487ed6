"""Where a study's messages go: this process or Ray; a deployment has a real SuperLink."""
