"""The storm: `presswork up` and two workers on other hosts render tens of thousands of images while everything that can
fail does, again and again."""
