"""Exceptions that cross the wire: both sides import them from here."""


class InstanceNotFound(Exception):
    """There is no such instance."""

    def __init__(self, instance_id):
        super().__init__(instance_id)
        self.instance_id = instance_id

    def __str__(self):
        return f"Instance {self.instance_id} could not be found."
