"""Jobs: settings, work directory, and the phases in order, with everything that resumes them."""
