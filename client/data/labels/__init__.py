"""Labels of a hospital's images: tables, folder names, masks and reports, joined."""
