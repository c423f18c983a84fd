#!/bin/sh
# Runs training_peer_test.py with a Python that has PyTorch; where there is none, says so and exits with 77.
# Usage: training_peer_test.sh SOURCE_DIR
for python in "${DUNNOCK_TORCH_PYTHON:-python3}" /usr/bin/python3; do
  if "$python" -c 'import numpy, torch' 2> /dev/null; then
    exec "$python" "$1/tests/training/training_peer_test.py"
  fi
done
echo "skipped: no Python here has torch and numpy (DUNNOCK_TORCH_PYTHON names one)"
exit 77
