"""Renders that belong to the server: kept on disk, done one after the other, resumed after a crash.

jobs = Jobs()
with Workers(jobs):
    id = jobs.submit("speech.wav", RenderSettings(preset="draft"), owner="me")
    jobs.get(id, "me").state
"""

from avatar_app.jobs.housekeeping import Limits
from avatar_app.jobs.store import Job, Jobs
from avatar_app.jobs.supervisor import Workers

__all__ = ["Job", "Jobs", "Limits", "Workers"]
