"""All comparisons with the real CompressAI, in one process; `run.sh` sets up the environment."""

import bitstreams
import hyperpriors
import oracle

bitstreams.main()
hyperpriors.main()
oracle.main()
