"""The course platform: places in courses, codes, reports, and what other systems know of courses and people."""
