# shellcheck shell=bash disable=SC2034  # the other scripts read these
# Settings of the scripts in this folder. Copy this file to settings.sh, which git ignores, and fill
# it in; --settings=FILE selects another file. It is read by bash; write variables of your own in
# lower case, since an unknown name in capitals is refused as a misspelling.

# --- What and where -----------------------------------------------------------------------------
NAME=my-run                # of the pod: lower-case letters, digits, "-"; slices are NAME-0, NAME-1
PROJECT=                   # Google Cloud project
ZONE=                      # such as us-west4-a; which zone has which TPU: docs/pods.md
ACCELERATOR_TYPE=v5litepod-256  # of one slice. Number of chips for v5litepod-N and v6e-N; number
                                # of cores, two per chip, for v2, v3, v4, v5p and tpu7x
RUNTIME_VERSION=v2-alpha-tpuv5-lite  # image of the VMs; v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5,
                                     # v4 and older: tpu-ubuntu2204-base
SLICES=1                   # several are connected by the data centre's network (multislice)
CAPACITY=spot              # spot: cheap, may be preempted; reserved: from a reservation you have;
                           # on-demand
QUEUED=true                # true: request a queued resource, which waits for capacity, and which
                           # several slices need; false: create now, or fail
CREATE_FLAGS=()            # more flags for gcloud's create, such as (--service-account=ACCOUNT
                           # --network=NETWORK --subnetwork=SUBNETWORK --internal-ips)
SSH_FLAGS=()               # more flags for gcloud's ssh and scp, such as (--internal-ip)

# --- The run ------------------------------------------------------------------------------------
COMMIT=HEAD                # of this repository, which the pod installs and runs
CONFIG=configs/gpt/gpt3.py:1.3b  # for `bigjax train --config`; a file of that commit
WORKDIR=gs://my-bucket/runs/my-run  # a bucket in the pod's region; several hosts need gs://

# --- watch.sh and jobset.sh ---------------------------------------------------------------------
INTERVAL=60                # seconds between two checks of the pod
MAX_RESTARTS=20            # how often the pod may be created again, or the run started again

# --- Only jobset.sh (Kubernetes) ----------------------------------------------------------------
TOPOLOGY=16x16             # of a slice, as in `bigjax plan --topology=v5e:16x16`
IMAGE=                     # a container image built from tpu_scripts/Dockerfile
SERVICE_ACCOUNT=default    # of Kubernetes; one that may write to WORKDIR
QUEUE=                     # Kueue's local queue; on clusters made by XPK: multislice-queue
