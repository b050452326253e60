from jaxremat import compact as compact
