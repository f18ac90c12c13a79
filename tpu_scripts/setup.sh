#!/usr/bin/env bash
# Installs the project on all workers, at the commit of the settings.
#
#   setup.sh [--settings=FILE] [--dry-run]
#
# Copies the committed files (no network access to the repository is needed) and makes a virtual
# environment with the exact versions of constraints.txt. It may be called again: workers that have
# the commit do nothing. A run in progress keeps the commit it was started with.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "" "$@"
need_gcloud
commit=$(exact_commit "$COMMIT")
if [[ -n $(git -C "$ROOT" status --porcelain --untracked-files=no) ]]; then
  echo "${0##*/}: there are uncommitted changes; the pod gets $commit without them." >&2
fi

folder=bigjax-${commit:0:12}
archive=$ROOT/build/$folder.tar.gz
call mkdir -p "$ROOT/build"
call git -C "$ROOT" archive --format=tar.gz "--output=$archive" "$commit"

copy() {  # NODE
  limited gcloud compute tpus tpu-vm scp "$archive" "$1:$folder.tar.gz" "${WHERE[@]}" \
    "${SSH_FLAGS[@]}" "${SSH_OPTIONS[@]/#/--scp-flag=-o}" --quiet --worker=all
}
on_slices copy
on_all "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder &&\
 bash $folder/tpu_scripts/on_worker.sh setup"
