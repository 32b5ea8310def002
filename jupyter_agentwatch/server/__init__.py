"""The Jupyter server extension: an authenticated relay between browsers and supervisors that needs no kernel."""
