"""A message as services send it, for tests and measurements of the codec."""

from typing import Any

__all__ = ["INSTANCE", "REQUEST"]

CONTEXT: dict[str, Any] = {
    "user_id": "1f9d1a6d0c9a4a3c8f4b7f8d6e5c4b3a",
    "project_id": "9a8b7c6d5e4f40312233445566778899",
    "is_admin": True,
    "read_deleted": "no",
    "roles": ["member", "reader"],
    "remote_address": "192.0.2.17",
    "timestamp": "2026-05-11T09:15:41.993211",
    "request_id": "req-3e1c4e0e-55f5-4a38-8ad2-0d3d5a5cf8e6",
    "global_request_id": None,
    "auth_token": "gAAAAABk0123456789abcdef",
    "user_name": "alice",
    "project_name": "shop",
    "service_catalog": [],
    "instance_lock_checked": False,
    "user_domain": "default",
    "project_domain": "default",
    "domain": None,
    "system_scope": None,
    "is_admin_project": True,
    "show_deleted": False,
    "resource_uuid": None,
    "user_identity": "1f9d 9a8b - default default",
    "quota_class": None,
}
INSTANCE: dict[str, Any] = {
    "nova_object.name": "Instance",
    "nova_object.namespace": "nova",
    "nova_object.version": "2.7",
    "nova_object.data": {
        "id": 4711,
        "uuid": "5b2b3c1c-3c25-4a5e-8a0e-4d8f5b3e2f10",
        "user_id": "1f9d1a6d0c9a4a3c8f4b7f8d6e5c4b3a",
        "project_id": "9a8b7c6d5e4f40312233445566778899",
        "image_ref": "c1d2e3f4-aaaa-4bbb-8ccc-1234567890ab",
        "hostname": "web-17",
        "display_name": "web-17",
        "memory_mb": 4096,
        "vcpus": 2,
        "root_gb": 20,
        "ephemeral_gb": 0,
        "host": None,
        "node": None,
        "launched_at": None,
        "created_at": "2026-05-11T09:15:42Z",
        "locked": False,
        "vm_state": "building",
        "task_state": "scheduling",
        "power_state": 0,
        "availability_zone": "az-1",
        "metadata": {"role": "web", "tier": "1"},
        "auto_disk_config": True,
        "progress": 0.5,
    },
    "nova_object.changes": ["vm_state", "task_state"],
}
# A call as services send it: 23 fields of context and one versioned object,
# 2.2 kB on the wire.
REQUEST: dict[str, Any] = {
    "method": "build_and_run_instance",
    "args": {"instance": INSTANCE},
    "version": "6.0",
    "_msg_id": "8d76912c1b264d539c825e3654be6866",
    "_reply_q": "reply_cb67037c75054449a24700b6a16fa875",
    "_timeout": None,
    "_unique_id": "397de6e91f3a462ea1dbbcd175c58345",
    **{f"_context_{key}": value for key, value in CONTEXT.items()},
}
