#!/usr/bin/env bash
# Prints a Kubernetes JobSet that does on GKE what create.sh, setup.sh, run.sh and watch.sh do.
#
#   jobset.sh [--settings=FILE] [-- ARGUMENT...] | kubectl apply -f -
#
#   ARGUMENT   additional arguments of `bigjax train`
#
# One Job per slice, one Pod per host. JobSet gives the Pods names by which they find each other,
# and GKE gives each its index. When a Pod fails or is preempted, all are started again from the
# latest checkpoint in WORKDIR, at most MAX_RESTARTS times. Bad input (exit code 2) is not retried.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "--" "$@"
need_cloud_storage "a Pod's disk is lost with the Pod"

declare -A accelerators=([v4]=tpu-v4-podslice [v5litepod]=tpu-v5-lite-podslice
  [v5p]=tpu-v5p-slice [v6e]=tpu-v6e-slice [tpu7x]=tpu7x)
accelerator=${accelerators[$GENERATION]:-}
[[ -n $accelerator ]] || bad "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE', which GKE does not have;" \
  "it has v4, v5litepod, v5p, v6e and tpu7x."
[[ $TOPOLOGY =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] || bad "TOPOLOGY is '$TOPOLOGY'; it" \
  "must be the sides of a slice, such as 16x16 or 4x4x8."
((${TOPOLOGY//x/ * } == CHIPS)) || bad "TOPOLOGY is $TOPOLOGY, which is" \
  "$((${TOPOLOGY//x/ * })) chips; a slice of ACCELERATOR_TYPE=$ACCELERATOR_TYPE has $CHIPS."
[[ -n $IMAGE ]] || bad "IMAGE is empty in $SETTINGS; docs/pods.md explains how to build one."
[[ -n $SERVICE_ACCOUNT ]] || bad "SERVICE_ACCOUNT is empty in $SETTINGS; every cluster has" \
  "\"default\"."
# GKE's machines whose names end with -4t have four chips, and those with -1t one.
chips_a_host=4
if ((CHIPS == 1)); then chips_a_host=1; fi
((CHIPS % chips_a_host == 0)) || bad "ACCELERATOR_TYPE=$ACCELERATOR_TYPE has $CHIPS chips; the" \
  "machines of GKE's slices have 4 each."
hosts=$((CHIPS / chips_a_host))
((SLICES == 1 || hosts > 1)) || bad "SLICES is $SLICES, and a slice of $ACCELERATOR_TYPE is one" \
  "host; GKE connects only slices of several hosts."

text() {  # TEXT as a YAML string
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"} s=${s//$'\n'/\\n} s=${s//$'\t'/\\t}
  echo "\"$s\""
}

arguments=""
# The machines of several node pools start one after another, so hosts wait longer for each other.
for argument in "--config=$CONFIG" "--workdir=$WORKDIR" "--config.hosts.start_timeout=1800" \
  "${REST[@]}"; do
  arguments+="${arguments:+, }$(text "$argument")"
done
queue="" spot=""
if [[ -n $QUEUE ]]; then queue="
  labels:
    kueue.x-k8s.io/queue-name: $(text "$QUEUE")"; fi
if [[ $CAPACITY == spot ]]; then spot="
              cloud.google.com/gke-spot: \"true\""; fi

cat << END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME$queue
  annotations:
    # Each slice's Job has exclusive use of a node pool, that is a slice.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true  # hosts look for each other before all are ready
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
    - name: badInput
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        completionMode: Indexed
        completions: $hosts
        parallelism: $hosts
        backoffLimit: 0  # a single host cannot be started again: JobSet restarts all
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: bigjax
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            serviceAccountName: $(text "$SERVICE_ACCOUNT")
            terminationGracePeriodSeconds: 300  # to save; a preemption gives less
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $(text "$TOPOLOGY")$spot
            containers:
            - name: bigjax
              image: $(text "$IMAGE")
              command: [bash, tpu_scripts/in_pod.sh]
              args: [$arguments]
              ports:
              - containerPort: 8471  # between the hosts of a slice
              - containerPort: 8080  # between slices
              - containerPort: 8482  # jax.distributed's coordinator
              resources:
                requests:
                  google.com/tpu: $chips_a_host
                limits:
                  google.com/tpu: $chips_a_host
END
