"""The subscribers of `school-erp`: its fourteen topics tell parents or staff, and start the school's own jobs.

The database knows no families: an email about one pupil goes to the user whom the event names.
"""

from __future__ import annotations

from saqkit.app.subscribers.subscriber import Starts, Tells

__all__ = ["SUBSCRIBERS"]

TO_PARENTS = {
    "student:enrolled": "{student} is enrolled in {class_name}",
    "student:withdrawn": "{student} has left the school",
    "attendance:marked": "{student} was marked {status} on {day}",
    "attendance:corrected": "the mark of {student} on {day} is {status} now",
    "exam:created": "the exam {exam} is on {day}",
    "exam:results_published": "the results of the exam {exam} are there",
    "grade:updated": "{student} has grade {grade} in {subject} now",
}
TO_STAFF = {
    "class:created": "the class {class_name} was made",
    "subject:assigned": "{subject} in {class_name} is taught by {teacher}",
    "attendance:report_generated": "the attendance report {report} is ready",
    "tenant:created": "{school} has joined",
    "system:error_occurred": "{job_type} has failed for good: {error}",
}
STAFF = ("admin", "staff", "teacher")

SUBSCRIBERS = (
    Tells("tell-parents", "tell-parents", "user or everybody", ("parent",), TO_PARENTS),
    Tells("announce-results", "tell-parents", "everybody", ("parent",), TO_PARENTS),
    Tells("tell-staff", "tell-staff", "user or everybody", STAFF, TO_STAFF),
    Starts("update-records"),
    Starts("refresh-statistics"),
)
