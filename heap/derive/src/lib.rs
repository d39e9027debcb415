//! The derive macros of the crate [`memsnap-heap`](https://docs.rs/memsnap-heap).

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, GenericParam, Lifetime, Type, parse_macro_input, parse_quote};

/// Implements `memsnap_heap::Snap` for a struct or an enum.
///
/// All fields and type parameters must implement it. A type with a lifetime parameter is for heaps of that brand. The
/// documentation of `Snap` lists what the type promises. A type that implements `Drop` is refused.
#[proc_macro_derive(Snap)]
pub fn derive_snap(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input, "Snap").unwrap_or_else(Error::into_compile_error).into()
}

/// Implements `memsnap_heap::Persist` for a struct or an enum that implements `Snap`.
///
/// All fields and type parameters must implement it.
#[proc_macro_derive(Persist)]
pub fn derive_persist(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input, "Persist").unwrap_or_else(Error::into_compile_error).into()
}

fn expand(input: &DeriveInput, name_of_trait: &str) -> syn::Result<TokenStream> {
    let marker = format_ident!("{name_of_trait}");
    let name = &input.ident;
    let fields = field_types(input, name_of_trait)?;
    let mut lifetimes = input.generics.lifetimes();
    let brand = lifetimes.next().map(|parameter| parameter.lifetime.clone());
    if let Some(second) = lifetimes.next() {
        return Err(Error::new_spanned(
            second,
            format!(
                "`{name_of_trait}` can be derived for types with one lifetime, which is the brand of their heap; values in a \
                 heap cannot borrow from elsewhere"
            ),
        ));
    }

    let mut generics = input.generics.clone();
    let brand = brand.unwrap_or_else(|| {
        let brand: Lifetime = parse_quote!('memsnap_heap);
        generics.params.insert(0, parse_quote!(#brand));
        brand
    });
    for parameter in &mut generics.params {
        if let GenericParam::Type(parameter) = parameter {
            parameter.bounds.push(parse_quote!(::memsnap_heap::#marker<#brand>));
        }
    }
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let (own_impl_generics, type_generics, own_where_clause) = input.generics.split_for_impl();
    let no_drop = format_ident!("{name}ImplementsDropAndCannotDerive{name_of_trait}");
    Ok(quote! {
        const _: () = {
            // SAFETY: whoever derives the trait promises its conditions. `check` below demands that all fields keep them.
            #[automatically_derived]
            unsafe impl #impl_generics ::memsnap_heap::#marker<#brand> for #name #type_generics #where_clause {}

            #[allow(dead_code, non_snake_case)]
            fn check #impl_generics () #where_clause {
                fn field<'field, T: ::memsnap_heap::#marker<'field> + ?::core::marker::Sized>() {}
                #(field::<#brand, #fields>();)*
            }

            // Two implementations apply to a type that implements `Drop`, which the compiler refuses.
            #[allow(dead_code)]
            trait #no_drop {}
            #[allow(drop_bounds)]
            impl<T: ::core::ops::Drop + ?::core::marker::Sized> #no_drop for T {}
            impl #own_impl_generics #no_drop for #name #type_generics #own_where_clause {}
        };
    })
}

fn field_types<'a>(input: &'a DeriveInput, name_of_trait: &str) -> syn::Result<Vec<&'a Type>> {
    match &input.data {
        Data::Struct(data) => Ok(data.fields.iter().map(|field| &field.ty).collect()),
        Data::Enum(data) => Ok(data
            .variants
            .iter()
            .flat_map(|variant| variant.fields.iter().map(|field| &field.ty))
            .collect()),
        Data::Union(_) => Err(Error::new_spanned(
            &input.ident,
            format!(
                "`{name_of_trait}` cannot be derived for unions; implement it with `unsafe impl` if the type keeps its promises"
            ),
        )),
    }
}
