"""Models as folders: manifests, artefacts and their differentiable twins, baseline sets, versions."""
