"""A client in the manner of nova's API: casts a build, then asks in vain.

    TRANSPORT_URL=fastmsg://guest:guest@localhost/ python compute_api.py

Exceptions of the modules in ``allowed_remote_exmods`` arrive as their class,
so that ``except`` works across the wire.
"""

import logging
import os
import sys

import faults
import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF

INSTANCE_ID = "7a2f4ce5-0f45-4b8e-9d3c-3b7f0d0f6a11"
CONTEXT = {"user_id": "demo", "project_id": "demo", "request_id": "req-1"}


def versioned(name, version, /, **data):
    """Return an object as nova sends it."""
    return {
        "nova_object.name": name,
        "nova_object.namespace": "nova",
        "nova_object.version": version,
        "nova_object.data": data,
        "nova_object.changes": sorted(data),
    }


FLAVOR = versioned(
    "Flavor",
    "1.2",
    flavorid="7",
    name="m1.large",
    vcpus=4,
    memory_mb=8192,
    root_gb=40,
    extra_specs={"hw:cpu_policy": "shared", "hw:mem_page_size": "large"},
)
INSTANCE = versioned(
    "Instance",
    "2.8",
    uuid=INSTANCE_ID,
    display_name="web-1",
    user_id="demo",
    project_id="demo",
    flavor=FLAVOR,
    host=None,
    locked=False,
    created_at="2026-11-21T03:00:00Z",
    metadata={"role": "web", "note": 'says "hi"'},
    system_metadata={"image_min_disk": "20", "image_os_distro": "debian"},
    block_devices=[
        versioned(
            "BlockDeviceMapping",
            "1.20",
            device_name=device,
            source_type="image",
            destination_type="local",
            volume_size=size_gb,
            boot_index=index,
        )
        for index, (device, size_gb) in enumerate([("/dev/vda", 40), ("/dev/vdb", 80)])
    ],
)
IMAGE = versioned(
    "ImageMeta", "1.8", id="0f2c8a1e", name="debian-12", min_disk=20, status="active"
)
REQUEST_SPEC = versioned(
    "RequestSpec",
    "1.14",
    num_instances=1,
    instance_uuid=INSTANCE_ID,
    availability_zone="az-1",
    scheduler_hints={"group": ["web"]},
    limits={"memory_mb": 65536, "vcpus": 64},
)


def main():
    logging.basicConfig(level=logging.WARNING)
    CONF(sys.argv[1:])
    transport = oslo_messaging.get_rpc_transport(
        CONF,
        url=os.environ.get("TRANSPORT_URL"),
        allowed_remote_exmods=[faults.__name__],
    )
    target = oslo_messaging.Target(
        topic="conductor", namespace="compute_task", version="1.24"
    )
    # get_rpc_client() came with oslo.messaging 14.1.
    make_client = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
    conductor = make_client(transport, target, timeout=10)

    conductor.cast(
        CONTEXT,
        "build_instances",
        instances=[INSTANCE],
        image=IMAGE,
        request_spec=REQUEST_SPEC,
    )
    print("cast build_instances", flush=True)

    try:
        conductor.call(CONTEXT, "get_instance", instance_id=INSTANCE_ID)
    except faults.InstanceNotFound as error:
        first_line = str(error).splitlines()[0]
        print(f"except faults.InstanceNotFound: {first_line}", flush=True)
        raised = True
    else:
        print("get_instance raised nothing", flush=True)
        raised = False
    transport.cleanup()
    return 0 if raised else 1


if __name__ == "__main__":
    sys.exit(main())
